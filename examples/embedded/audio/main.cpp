// The callback at work: an audio thread plays blocks of a plucked string, a control thread changes the amplifier.
//
//   ./audio [blocks]
#include "player.hpp"

extern "C" {
#include "clean.h"
#include "drive.h"
}

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

using Clean = Amplifier<clean_state, clean_init, clean_run>;
using Drive = Amplifier<drive_state, drive_init, drive_run>;

thread_local bool on_audio_thread = false; // alone.cpp stops the program if memory is asked for while it is set

static void pluck(std::vector<float> &samples, float pitch, float rate)
{
    for (std::size_t i = 0; i < samples.size(); i++) {
        const float t = static_cast<float>(i) / rate;
        samples[i] = std::exp(-3 * t) * std::sin(6.2831853f * pitch * t);
    }
}

int main(int count, char **words)
{
    constexpr std::size_t frames = 64;
    constexpr float rate = 48000;
    const int blocks = count > 1 ? std::atoi(words[1]) : 3000; // of 1.3 ms
    std::vector<float> in(frames * 1000), out(in.size());
    pluck(in, 110, rate);

    Player player(std::make_unique<Clean>());
    std::atomic<bool> over{false};
    double longest = 0;
    std::thread audio([&] {
        const auto start = std::chrono::steady_clock::now();
        for (int block = 0; block < blocks; block++) {
            std::this_thread::sleep_until(start + block * std::chrono::duration<double>(frames / rate));
            const std::size_t at = frames * (static_cast<std::size_t>(block) % 1000);
            const auto begin = std::chrono::steady_clock::now();
            on_audio_thread = true;
            player.callback(&in[at], &out[at], frames);
            on_audio_thread = false;
            const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
            longest = std::max(longest, spent.count());
        }
        over = true;
    });
    int changes = 0;
    while (!over) {
        std::unique_ptr<Voice> next;
        if (changes % 2 == 0)
            next = std::make_unique<Drive>();
        else
            next = std::make_unique<Clean>();
        changes += player.change(std::move(next));
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    audio.join();
    std::printf("%d blocks of %zu frames, %d changes of model; the longest block took %.0f us of %.0f\n", blocks, frames,
                changes, 1e6 * longest, 1e6 * frames / rate);
    for (float sample : out)
        if (!std::isfinite(sample))
            return 1;
    return changes > 0 ? 0 : 1;
}
