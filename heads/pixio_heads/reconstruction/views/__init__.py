"""Where sets of views come from: files, rendered scenes, pictures, and how sets are made."""
