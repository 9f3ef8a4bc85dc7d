"""To look at a model: the explorer in the browser, and a page to send. Extra `app`."""
