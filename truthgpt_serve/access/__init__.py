"""Who may use the service: keys in a file, checked by every application for itself."""
