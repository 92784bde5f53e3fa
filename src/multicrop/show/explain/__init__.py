"""Why an image gets its class: explanation, picture, page and table of one image."""
