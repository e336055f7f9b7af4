// An audio callback that runs one of two amplifier models and changes between them without a click, a lock or an
// allocation on the audio thread.
//
// There are two slots. The callback plays one of them; the control thread fills the other, then publishes its index.
// At its next block the callback fades from the old voice to the new one and says that it has moved on: from then
// on the old slot is the control thread's, which also frees what was in it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

class Voice {
public:
    virtual ~Voice() = default;
    virtual void process(const float *in, float *out, std::size_t frames) noexcept = 0;
};

// One exported model of one input and one output: its state lies in the object itself.
template <typename State, void (*init)(State *), std::size_t (*run)(State *, const float *, float *, std::size_t)>
class Amplifier final : public Voice {
public:
    Amplifier() { init(&state_); }
    void process(const float *in, float *out, std::size_t frames) noexcept override { run(&state_, in, out, frames); }

private:
    State state_;
};

class Player {
public:
    static constexpr std::size_t most_frames = 1024;

    explicit Player(std::unique_ptr<Voice> first) { slots_[0] = std::move(first); }

    // Control thread: play another voice from the next block on. False if the callback has not yet taken up the last
    // one; try again a block later.
    bool change(std::unique_ptr<Voice> next)
    {
        const int now = published_.load(std::memory_order_relaxed);
        if (playing_.load(std::memory_order_acquire) != now)
            return false;
        slots_[1 - now] = std::move(next);
        published_.store(1 - now, std::memory_order_release);
        return true;
    }

    // Audio thread.
    void callback(const float *in, float *out, std::size_t frames) noexcept
    {
        for (; frames > most_frames; frames -= most_frames, in += most_frames, out += most_frames)
            block(in, out, most_frames);
        block(in, out, frames);
    }

private:
    void block(const float *in, float *out, std::size_t frames) noexcept
    {
        const int now = playing_.load(std::memory_order_relaxed);
        const int next = published_.load(std::memory_order_acquire);
        slots_[now]->process(in, out, frames);
        if (next == now)
            return;
        slots_[next]->process(in, fade_.data(), frames);
        for (std::size_t i = 0; i < frames; i++)
            out[i] += (fade_[i] - out[i]) * static_cast<float>(i + 1) / static_cast<float>(frames);
        playing_.store(next, std::memory_order_release);
    }

    std::array<std::unique_ptr<Voice>, 2> slots_;
    std::array<float, most_frames> fade_{};
    std::atomic<int> published_{0}, playing_{0};
};
