"""The routes for images: generations, edits and variations."""
