"""Paired counterfactuals: futures of one common past, under several methods, prompts or seeds."""
