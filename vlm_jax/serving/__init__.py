"""Serving: an OpenAI-compatible HTTP API over generation, with dynamic batching.

config and errors; protocol (what may be asked), responses (what is answered), images and remote (pictures), prompts
(messages -> prompt), batcher (queue and worker), service (between the two), app (routes), server (socket, signals).
"""
