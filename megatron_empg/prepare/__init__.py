"""What a login node does before the first job: fetch model, questions and corpus, check them, build the index."""
