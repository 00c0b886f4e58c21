"""The methods: a table of rows, the equation that they share, and its parts."""
