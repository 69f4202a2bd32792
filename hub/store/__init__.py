"""The hub's truth: one file per aggregate, SQL only here.

Functions take an open connection and never commit: the transaction belongs to the use case (`writer`).
"""
