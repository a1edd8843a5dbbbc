"""HTTP clients: language models (`chat`), embedding endpoints (`endpoint`), their vector cache."""
