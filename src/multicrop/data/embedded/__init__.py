"""The embedded artwork: single drawings, composed scenes, and how the artwork was packed."""
