"""The report of a run as one page, and how recorded samples are read: for the report, and for the page that watches.

In come the files of a run directory; out goes report.html, self-contained.
"""
