"""The examples as their users run them: one command each, with requests over HTTP."""
