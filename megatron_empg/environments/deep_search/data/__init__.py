"""Published question sets: their files read, checked and drawn from."""
