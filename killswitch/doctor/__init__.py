"""What is wrong with a store, a cluster and this machine, in sentences.

:mod:`~killswitch.doctor.probes` and :mod:`~killswitch.doctor.machine` measure, and hold no opinion;
:mod:`~killswitch.doctor.findings` and :mod:`~killswitch.doctor.servers` judge what was measured, and touch nothing.
"""
