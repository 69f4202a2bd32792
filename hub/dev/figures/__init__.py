"""The figures of `./dev bench`: one module each, a measured value beside the same step with the bare library.

Belongs here: how one number is taken. Starting the stack and printing is `hub.dev.bench`.
"""
