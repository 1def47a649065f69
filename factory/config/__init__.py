"""What users write in domains/*.yaml: its schema, and how it is read and checked. No torch."""
