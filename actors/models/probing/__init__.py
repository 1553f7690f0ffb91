"""Probes of a model: may its sequences be packed, and does our head compute its log-probs?"""
