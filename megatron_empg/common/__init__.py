"""Small things that any room may need: errors, files written aside, HTTP, ranks, element types, waits, values."""
