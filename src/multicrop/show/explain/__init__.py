"""Why an image gets its class: evidence, picture and page."""
