"""What the page of runs and the report of a run have besides what all pages share: the same styles and scripts, live and in a file"""

OWN_SHEETS = ("observe/dashboard/static/page.css",)
OWN_SCRIPTS = ("observe/dashboard/static/views.js", "observe/dashboard/static/page.js")
