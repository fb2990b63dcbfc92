"""Rules broken on purpose: is every broken variant caught, by a scenario that is clean on the real code?"""
