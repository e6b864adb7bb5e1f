// One cell of the array: keeps one output, passes its operands on to the east and to the south.
`default_nettype none
module mac_cell (
    input  wire               clk,
    input  wire               valid_in,  // the operands belong to a sum
    input  wire               first_in,  // they are its first
    input  wire signed  [7:0] west,
    input  wire signed  [7:0] north,
    output reg                valid_out,
    output reg                first_out,
    output reg  signed  [7:0] east,
    output reg  signed  [7:0] south,
    output reg  signed [31:0] sum
);
    reg signed [15:0] product;

    always @(posedge clk) begin
        east      <= west;
        south     <= north;
        valid_out <= valid_in;
        first_out <= first_in;
        product   <= west * north;
        // The product of the cycle before stands beside the flags of the cycle before.
        if (valid_out) sum <= first_out ? 32'(product) : sum + 32'(product);
    end

    initial begin
        valid_out = 0;
        first_out = 0;
    end
endmodule
