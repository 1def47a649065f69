"""The build, stage by stage; start with build.py."""
