"""HTTP clients: language models (`chat`), embedding endpoints (`endpoint`) and the cache of their answers."""
