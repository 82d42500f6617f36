"""Signatures over promoted models: OpenSSF model signing over the files, and an in-toto statement on what led to them."""
