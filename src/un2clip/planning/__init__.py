"""What a run will cost, before it is paid for: counted on shapes alone, no weight is allocated."""
