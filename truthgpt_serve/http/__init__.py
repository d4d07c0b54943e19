"""What browsers and other HTTP clients need of every application, around the application itself."""
