"""The laboratory: configurations, studies, their dispatch, and what is read off the runs.

Nothing is imported here: a job that watches a kernel needs no torch, a kernel that trains needs no papermill, and each
would cost every run of a study seconds.
"""
