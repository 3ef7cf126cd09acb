"""What each study's report holds: a function ``sections`` a study."""
