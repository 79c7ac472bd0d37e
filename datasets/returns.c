/* n-step targets and returns-to-go, by the same operations in the same order as returns.py, so that
 * both give the same bits: compiled without contraction of products and sums. */

static void of_episode(long first, long last, int n, double discount, const double *powers,
                       double beyond, const float *rewards, const float *masks, float *returns,
                       float *discounts, int *steps, float *returns_to_go) {
    long stop = last; /* where the window of the row at hand ends at the latest */
    double after = beyond;
    for (long row = last; row >= first; row--) {
        int goes_on = masks[row] > 0;
        if (!goes_on) stop = row;
        long left = stop - row + 1;
        int taken = left < n ? (int)left : n;
        double sum = 0.0 + rewards[row];
        for (int k = 1; k < taken; k++) sum += (float)powers[k] * rewards[row + k];
        returns[row] = (float)sum;
        discounts[row] = (float)(powers[taken] * masks[row + taken - 1]);
        steps[row] = taken;
        after = goes_on ? rewards[row] + discount * after : rewards[row];
        returns_to_go[row] = (float)after;
    }
}

/* Of every episode; see returns.py. `ends` (E,) are the rows behind episodes, `powers` (n + 1,)
 * those of the discount, `beyond` (E,) the returns after episodes; the others are (N,). */
void targets(long episodes, const long *ends, int n, double discount, const double *powers,
             const double *beyond, const float *rewards, const float *masks, float *returns,
             float *discounts, int *steps, float *returns_to_go, int threads) {
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads)
    for (long e = 0; e < episodes; e++)
        of_episode(e ? ends[e - 1] : 0, ends[e] - 1, n, discount, powers, beyond[e], rewards,
                   masks, returns, discounts, steps, returns_to_go);
}
