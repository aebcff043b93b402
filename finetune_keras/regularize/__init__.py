"""Regularisers made for transfer."""
