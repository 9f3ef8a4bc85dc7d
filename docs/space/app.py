"""The explorer as a Space of Hugging Face: this folder is the Space, with your model for `words-small`."""

import os

from nanobackpack.app.explore import open_models, serve

serve(open_models([os.environ.get("MODEL", "words-small")]), port=7860, host="0.0.0.0")
