"""The examples as their users run them: one command each, asked over HTTP."""
