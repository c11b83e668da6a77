"""Scores of separated songs: metrics, oracles, comparisons, costs and figures."""
