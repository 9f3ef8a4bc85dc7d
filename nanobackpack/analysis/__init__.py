"""What senses mean, and how to change them."""
