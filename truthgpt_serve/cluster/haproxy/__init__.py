"""Ray Serve's HAProxy, started with an adapted configuration."""
