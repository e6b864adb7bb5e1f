// Runs one product on the verilated kernel: operands from standard input, results and cycles out.
//
// In:  depth left_tiles right_tiles shift relu clip, then the left words and the right words, each of
//      SIZE numbers. Out: "cycles LOAD TILE ALL", then one line of SIZE numbers a row that leaves.
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "Vexpert_kernel.h"
#include "verilated.h"

#ifndef SIZE
#error "SIZE of the array is set by the build"
#endif

static long ticks = 0;
static Vexpert_kernel* top = nullptr;

static void tick() {
    top->clk = 0;
    top->eval();
    top->clk = 1;
    top->eval();
    ticks++;
}

template <typename Port>
static void put(Port& port, const int* numbers) {  // SIZE numbers into one port, the first lowest
    unsigned char bytes[sizeof(Port)] = {0};
    for (int i = 0; i < SIZE; i++) bytes[i] = (unsigned char)numbers[i];
    __builtin_memcpy(&port, bytes, sizeof(Port));
}

int main() {
    int depth, left_tiles, right_tiles, shift, relu, clip;
    if (scanf("%d %d %d %d %d %d", &depth, &left_tiles, &right_tiles, &shift, &relu, &clip) != 6) return 2;
    std::vector<int> left(size_t(depth) * left_tiles * SIZE), right(size_t(depth) * right_tiles * SIZE);
    for (int& v : left) if (scanf("%d", &v) != 1) return 2;
    for (int& v : right) if (scanf("%d", &v) != 1) return 2;
    top = new Vexpert_kernel;
    top->reset = 1;
    top->start = 0;
    top->left_write = top->right_write = 0;
    for (int i = 0; i < 4 * SIZE + 8; i++) tick();
    top->reset = 0;
    ticks = 0;
    const int left_words = depth * left_tiles, right_words = depth * right_tiles;
    for (int at = 0; at < left_words || at < right_words; at++) {
        top->write_at = at;
        top->left_write = at < left_words;
        top->right_write = at < right_words;
        if (at < left_words) put(top->left_data, &left[size_t(at) * SIZE]);
        if (at < right_words) put(top->right_data, &right[size_t(at) * SIZE]);
        tick();
    }
    top->left_write = top->right_write = 0;
    const long loaded = ticks;
    top->depth = depth;
    top->left_tiles = left_tiles;
    top->right_tiles = right_tiles;
    top->shift = shift;
    top->relu = relu;
    top->clip = clip;
    top->start = 1;
    tick();
    top->start = 0;
    const long rows = long(left_tiles) * right_tiles * SIZE;
    std::vector<int> out;
    long first = 0;
    for (long limit = 0; long(out.size()) < rows * SIZE && limit < 100000000; limit++) {
        tick();
        if (!top->out_valid) continue;
        if (!first) first = ticks;
        unsigned char bytes[sizeof(top->out_data)];
        __builtin_memcpy(bytes, &top->out_data, sizeof(bytes));
        for (int i = 0; i < SIZE; i++) out.push_back((signed char)bytes[i]);
    }
    printf("cycles %ld %ld %ld\n", loaded, first - loaded, ticks);
    for (size_t i = 0; i < out.size(); i++)
        printf("%d%c", out[i], i % SIZE == SIZE - 1 ? '\n' : ' ');
    delete top;
    return 0;
}
