"""A registered student as files that others run, each with a report of how near it is to the registered one."""
