"""A study: every method over several seeds, what it does on average, and how sure that is.

run.py trains and measures, seeds.py makes means and intervals of it, ranking.py asks whether the diffusion loss ranks
encoders as a benchmark does, and figure.py draws.
"""
