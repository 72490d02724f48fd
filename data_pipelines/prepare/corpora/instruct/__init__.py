"""Triplets of picture, question and answer by templates over real captions."""
