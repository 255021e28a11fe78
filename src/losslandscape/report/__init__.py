"""From records and notebooks to the book: execution, provenance, figures, claims."""
