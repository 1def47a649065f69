"""Is a student good, and can it be trusted?"""
