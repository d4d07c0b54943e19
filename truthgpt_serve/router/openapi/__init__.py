"""The OpenAPI document and its page: `/openapi.json` and `/docs`."""

from truthgpt_serve.router.openapi.document import openapi_document, openapi_json
from truthgpt_serve.router.openapi.page import docs_html

__all__ = ["docs_html", "openapi_document", "openapi_json"]
