"""The routes for transcriptions and translations."""
