"""The REST API, version 1: thin handlers that parse, authorise, call one use case and render.

Here belongs what HTTP is about: routes, problems, the token, SSE, the OpenAPI document. No decision and no SQL: those
are in `hub.core` and `hub.store`, and what changes something is a use case in `hub.control`.
"""
