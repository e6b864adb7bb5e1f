// An int8 matrix product on an output-stationary SIZE x SIZE array, with ReLU and requantisation.
//
// Operands lie in 2 x SIZE banks: word i of the left banks holds element k of SIZE rows, word j of the
// right banks element k of SIZE columns; a tile takes `depth` words of each. Tiles are computed one
// after the other, the right operand's fastest; a tile takes depth + 2 SIZE + 3 cycles. While the next
// one runs, the last one's rows leave, one a cycle.
`default_nettype none
module expert_kernel #(
    parameter SIZE  = 4,
    parameter DEPTH = 2048,
    parameter AW    = $clog2(DEPTH)
) (
    input  wire              clk,
    input  wire              reset,
    // Operands in: one word of SIZE numbers a cycle into each side.
    input  wire              left_write,
    input  wire              right_write,
    input  wire     [AW-1:0] write_at,
    input  wire [8*SIZE-1:0] left_data,
    input  wire [8*SIZE-1:0] right_data,
    // What to do.
    input  wire              start,
    input  wire     [AW-1:0] depth,        // inner width of the product
    input  wire        [7:0] left_tiles,
    input  wire        [7:0] right_tiles,
    input  wire        [4:0] shift,        // right shift before the result is cut to 8 bits
    input  wire              relu,
    input  wire              clip,         // saturate; else take the low 8 bits
    // Results out: one row of a tile a cycle.
    output reg               busy,
    output reg               out_valid,
    output reg  [8*SIZE-1:0] out_data
);
    // The sequencer: counts k inside a tile, then waits until the last cell has its sum.
    localparam FLUSH = 2 * SIZE + 2;

    reg [AW-1:0] k, left_now, right_now, left_base, last_at;
    reg [7:0] left_end, right_end;
    reg [4:0] by;
    reg only_positive, saturate;
    reg [7:0] left_tile, right_tile;
    reg working, feeding;
    reg [5:0] flush;
    reg [5:0] draining;
    wire last_k = k == last_at;
    // Judged a cycle ahead, so that the end of a tile waits for no comparison.
    reg tile_done, last_right, last_left;
    always @(posedge clk) begin
        tile_done  <= !reset && working && !feeding && flush == FLUSH - 1;
        last_right <= right_tile == right_end;
        last_left  <= left_tile == left_end;
    end

    always @(posedge clk) begin
        if (reset) begin
            working <= 0;
            feeding <= 0;
            flush   <= 0;
        end else if (!working) begin
            if (start) begin
                working    <= 1;
                feeding    <= 1;
                flush      <= 0;
                k          <= 0;
                left_tile  <= 0;
                right_tile <= 0;
                left_base  <= 0;
                left_now   <= 0;
                right_now  <= 0;
                last_at    <= depth - 1'b1;
                left_end   <= left_tiles - 1'b1;
                right_end  <= right_tiles - 1'b1;
                by         <= shift;
                only_positive <= relu;
                saturate   <= clip;
            end
        end else if (feeding) begin
            k <= k + 1'b1;
            left_now  <= left_now + 1'b1;
            right_now <= right_now + 1'b1;
            if (last_k) begin
                feeding <= 0;
                flush   <= 0;
            end
        end else if (!tile_done) begin
            flush <= flush + 1'b1;
        end else begin
            k     <= 0;
            flush <= 0;
            right_tile <= last_right ? 8'd0 : right_tile + 1'b1;
            // The right side goes on with its next tile, the left one repeats its own.
            if (last_right) begin
                right_now <= 0;
                left_tile <= left_tile + 1'b1;
                left_base <= left_now;
            end else left_now <= left_base;
            if (last_right && last_left) working <= 0;
            else feeding <= 1;
        end
    end

    // Bank i reads i cycles after bank 0: addresses and flags wander along the edge.
    reg [AW-1:0] left_late[0:SIZE-1];  // address of the bank after
    reg [AW-1:0] right_late[0:SIZE-1];
    reg [SIZE-1:0] valid_late, first_late;
    reg [SIZE-1:0] valid_1, first_1, valid_2, first_2, valid_3, first_3;  // beside the words
    wire [AW-1:0] left_at[0:SIZE-1];
    wire [AW-1:0] right_at[0:SIZE-1];
    wire [SIZE-1:0] valid_at, first_at;

    wire [7:0] left_edge[0:SIZE-1];
    wire [7:0] right_edge[0:SIZE-1];
    wire [7:0] across[0:SIZE-1][0:SIZE];
    wire [7:0] down[0:SIZE][0:SIZE-1];
    wire valid_across[0:SIZE-1][0:SIZE];
    wire first_across[0:SIZE-1][0:SIZE];
    wire [31:0] sums[0:SIZE-1][0:SIZE-1];

    genvar r, c;
    generate
        for (r = 0; r < SIZE; r = r + 1) begin : banks
            assign left_at[r]  = r == 0 ? left_now : left_late[r == 0 ? 0 : r-1];
            assign right_at[r] = r == 0 ? right_now : right_late[r == 0 ? 0 : r-1];
            assign valid_at[r] = r == 0 ? feeding : valid_late[r == 0 ? 0 : r-1];
            assign first_at[r] = r == 0 ? k == 0 : first_late[r == 0 ? 0 : r-1];
            always @(posedge clk) begin
                left_late[r]  <= left_at[r];
                right_late[r] <= right_at[r];
                first_late[r] <= first_at[r];
                valid_late[r] <= !reset && valid_at[r];
                {first_3[r], first_2[r], first_1[r]} <= {first_2[r], first_1[r], first_at[r]};
                {valid_3[r], valid_2[r], valid_1[r]} <=
                    reset ? 3'b0 : {valid_2[r], valid_1[r], valid_at[r]};
            end
            operand_bank #(.DEPTH(DEPTH)) left_bank (
                .clk(clk), .write(left_write), .write_at(write_at),
                .write_data(left_data[8*r+:8]), .read_at(left_at[r]), .read_data(left_edge[r])
            );
            operand_bank #(.DEPTH(DEPTH)) right_bank (
                .clk(clk), .write(right_write), .write_at(write_at),
                .write_data(right_data[8*r+:8]), .read_at(right_at[r]), .read_data(right_edge[r])
            );
            assign across[r][0] = left_edge[r];
            assign down[0][r] = right_edge[r];
            assign valid_across[r][0] = valid_3[r];
            assign first_across[r][0] = first_3[r];
            for (c = 0; c < SIZE; c = c + 1) begin : row
                mac_cell one (
                    .clk(clk),
                    .valid_in(valid_across[r][c]), .first_in(first_across[r][c]),
                    .west(across[r][c]), .north(down[r][c]),
                    .valid_out(valid_across[r][c+1]), .first_out(first_across[r][c+1]),
                    .east(across[r][c+1]), .south(down[r+1][c]),
                    .sum(sums[r][c])
                );
            end
        end
    endgenerate

    // Sums of a finished tile move north row by row and leave requantised, four cycles later: shifted by
    // whole bytes, by the rest, judged, cut.
    reg signed [31:0] kept[0:SIZE-1][0:SIZE-1];
    reg signed [31:0] coarse[0:SIZE-1];
    reg signed [31:0] shifted[0:SIZE-1];
    reg [7:0] low[0:SIZE-1];
    reg [SIZE-1:0] negative, fits;
    reg [2:0] passing;
    integer y, x;
    always @(posedge clk) begin
        if (reset) begin
            draining  <= 0;
            passing   <= 0;
            out_valid <= 0;
        end else begin
            if (tile_done) draining <= SIZE;
            else if (draining != 0) draining <= draining - 1'b1;
            {out_valid, passing} <= {passing, draining != 0};
        end
        for (y = 0; y < SIZE; y = y + 1)
            for (x = 0; x < SIZE; x = x + 1)
                if (tile_done) kept[y][x] <= sums[y][x];
                else if (y < SIZE - 1) kept[y][x] <= kept[y == SIZE - 1 ? y : y+1][x];
        for (x = 0; x < SIZE; x = x + 1) begin
            coarse[x]   <= kept[0][x] >>> {by[4:3], 3'b000};
            shifted[x]  <= coarse[x] >>> by[2:0];
            low[x]      <= shifted[x][7:0];
            negative[x] <= shifted[x][31];
            fits[x]     <= shifted[x][31:7] == {25{shifted[x][31]}};
            if (only_positive && negative[x]) out_data[8*x+:8] <= 8'd0;
            else if (saturate && !fits[x]) out_data[8*x+:8] <= {negative[x], {7{!negative[x]}}};
            else out_data[8*x+:8] <= low[x];
        end
        busy <= !reset && (working || draining != 0 || passing != 0);
    end
endmodule
