"""What is known of an encoder: scores, their statistics, the report, the gate, its lineage."""
