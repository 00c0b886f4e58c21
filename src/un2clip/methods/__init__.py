"""The methods: a table of rows, the objective that they share, its conditions and anchors."""
