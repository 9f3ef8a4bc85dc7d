"""`python -m nanobackpack VERB ...` is the same as `nanobackpack VERB ...`."""

from nanobackpack.commands import main

if __name__ == "__main__":
    main()
