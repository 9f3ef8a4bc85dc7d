"""What do the senses of a word mean? A card for each sense of some words, side by side."""
