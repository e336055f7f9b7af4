"""fastlstm: LSTM, GRU and RNN inference on CPUs."""

__version__ = "0.1.0"
