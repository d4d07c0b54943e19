"""Ray Serve's manager of HAProxy, and what the service changes in it."""
